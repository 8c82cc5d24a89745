#!/bin/sh
# Gives an engine and modules the rights on Kafka that they need, and no more:
#   acls.sh HOST:PORT CLUSTER ENGINE_USER MODULE_USER
# `kafka-acls.sh` of Kafka's distribution must be in the PATH. docs/kafka.md says what
# each right is for.
set -eu
broker=$1
names=$2.
engine=User:$3
module=User:$4

# allow USER KIND OPERATION…: on all resources whose names begin with the cluster's.
allow() {
    user=$1
    kind=$2
    shift 2
    operations=
    for operation in "$@"; do operations="$operations --operation $operation"; done
    # shellcheck disable=SC2086  # several words are wanted
    kafka-acls.sh --bootstrap-server "$broker" --add --allow-principal "$user" $operations \
        "--$kind" "$names" --resource-pattern-type prefixed
}

allow "$engine" topic Create Alter AlterConfigs Read Write
allow "$engine" group Describe
allow "$module" topic Read Write DescribeConfigs
allow "$module" group Read
allow "$module" transactional-id Write
