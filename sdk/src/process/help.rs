//! The end of a module's `--help`: what its configuration takes, how it is
//! used, what its exit codes mean. Reads the schema; knows no module.

use pipedoc_model::registry::ModuleInfo;
use serde_json::Value;

/// What follows the flags.
pub(super) fn after(info: &ModuleInfo) -> String {
    let name = &info.module;
    let types: Vec<_> = info.step_types.iter().filter_map(|step_type| serde_json::to_value(step_type).ok()).collect();
    let types: Vec<_> = types.iter().filter_map(Value::as_str).collect();
    format!(
        "{configuration}\
         In a pipeline:\n  \
         - {{name: my-step, type: {first}, module: {name}, config: {{…}}}}\n  \
         The step's type is one of: {types}.\n\n\
         Examples:\n  \
         {name}                         attach to the engine on this machine\n  \
         {name} --describe              show the module and the schema of its configuration\n  \
         {name} --engines http://e1:7400,http://e2:7400 --log kafka:broker:9092\n\n\
         Without an engine the instance goes on with what it was last told. \
         gRPC is served with health and reflection.\n\n\
         Exit codes: 0 ended as asked; 1 failed, or ended at once by a second signal; 2 wrong arguments.",
        configuration = configuration(&info.config_schema),
        first = types.first().unwrap_or(&"PIPELINE"),
        types = types.join(", "),
    )
}

/// The fields of the step's `config`, one a line.
fn configuration(schema: &Value) -> String {
    let Some(fields) = schema.get("properties").and_then(Value::as_object).filter(|fields| !fields.is_empty()) else {
        return String::new();
    };
    let required: Vec<_> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    let mut text = "Configuration (the step's `config`):\n".to_owned();
    for (name, field) in fields {
        let field = resolve(schema, field);
        let says = field.get("description").and_then(Value::as_str).unwrap_or_default();
        let says = says.split_whitespace().collect::<Vec<_>>().join(" ");
        let default = match field.get("default") {
            _ if required.contains(&name.as_str()) => " [required]".to_owned(),
            Some(Value::Null) | None => String::new(),
            Some(default) => format!(" [default: {default}]"),
        };
        text.push_str(&format!("  {name:width$}  {says}{default}\n"));
    }
    text.push('\n');
    text
}

/// A field's schema; one that only refers to a definition still has its own
/// description first.
fn resolve<'a>(schema: &'a Value, field: &'a Value) -> &'a Value {
    let target =
        field.get("$ref").and_then(Value::as_str).and_then(|path| schema.pointer(path.trim_start_matches('#')));
    match target {
        Some(target) if field.get("description").is_none() => target,
        _ => field,
    }
}
