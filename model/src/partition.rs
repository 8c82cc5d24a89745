//! Which partition a record goes to: the function of Kafka's Java client.

/// `org.apache.kafka.common.utils.Utils.murmur2`, seed `0x9747b28c`.
#[must_use]
pub fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> R)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (shift, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * shift);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

/// Java's `Utils.toPositive`: clears the sign bit.
#[must_use]
pub fn to_positive(number: i32) -> i32 {
    number & 0x7fff_ffff
}

/// Partition of a keyed record: `toPositive(murmur2(key)) mod partitions`, as
/// Kafka's default partitioner and librdkafka's `murmur2_random` compute it.
/// `partitions` must be above 0; with less the answer is 0.
#[must_use]
pub fn for_key(key: &[u8], partitions: i32) -> i32 {
    to_positive(murmur2(key)) % partitions.max(1)
}

/// Partition of a record without key that is piped from `source_partition`:
/// the hash of its number in ASCII decimal, so that order holds across topics
/// with different numbers of partitions.
#[must_use]
pub fn for_source(source_partition: i32, partitions: i32) -> i32 {
    for_key(source_partition.to_string().as_bytes(), partitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `org.apache.kafka.common.utils.UtilsTest#testMurmur2`.
    #[test]
    fn murmur2_agrees_with_kafkas_java_client() {
        let vectors: [(&[u8], i32); 7] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
            (b"", 275_646_681),
        ];
        for (data, hash) in vectors {
            assert_eq!(murmur2(data), hash, "{}", String::from_utf8_lossy(data));
        }
    }

    /// Made with Kafka's Java client, kept by librdkafka (`rdmurmur2.c`).
    #[test]
    fn murmur2_agrees_with_librdkafkas_vectors() {
        let vectors: [(&str, u32); 11] = [
            ("kafka", 0xd067_cf64),
            ("giberish123456789", 0x8f55_2b0c),
            ("1234", 0x9fc9_7b14),
            ("234", 0xe7c0_09ca),
            ("34", 0x8739_30da),
            ("4", 0x5a4b_5ca1),
            ("PreAmbleWillBeRemoved,ThePrePartThatIs", 0x7842_4f1c),
            ("reAmbleWillBeRemoved,ThePrePartThatIs", 0x4a62_b377),
            ("eAmbleWillBeRemoved,ThePrePartThatIs", 0xe0e4_e09e),
            ("AmbleWillBeRemoved,ThePrePartThatIs", 0x62b8_b43f),
            ("", 0x106e_08d9),
        ];
        for (key, hash) in vectors {
            assert_eq!(murmur2(key.as_bytes()) as u32, hash, "{key}");
            for partitions in [1, 3, 4, 7, 100, i32::MAX] {
                let expected = (hash & 0x7fff_ffff) as i32 % partitions;
                assert_eq!(for_key(key.as_bytes(), partitions), expected, "{key} of {partitions}");
            }
        }
    }

    /// The hashes are the Java client's of "4", "34", "234" and "1234".
    #[test]
    fn records_without_key_follow_their_source_partition() {
        let vectors: [(i32, i32); 4] = [(4, 0x5a4b_5ca1), (34, 0x0739_30da), (234, 0x67c0_09ca), (1234, 0x1fc9_7b14)];
        for (source, hash) in vectors {
            for partitions in [1, 4, 6, 12] {
                assert_eq!(for_source(source, partitions), hash % partitions);
            }
        }
    }

    #[test]
    fn every_partition_is_one_of_the_topics() {
        assert_eq!(to_positive(i32::MIN), 0);
        for n in 0..1000 {
            assert!((0..7).contains(&for_source(n, 7)));
            assert_eq!((for_source(n, 1), for_source(n, 0), for_source(n, -3)), (0, 0, 0));
        }
    }
}
