//! The pipelines of the bench: as many as wanted, alike but for their names.

use std::fmt::Write as _;

/// What modules say of their configuration.
pub const SCHEMA: &str = r#"{
  "type": "object",
  "properties": {
    "folder": {"type": "string", "description": "Where results are kept."},
    "languages": {"type": "array", "items": {"type": "string"}},
    "size": {"type": "integer", "minimum": 1},
    "mark": {"type": "integer"}
  },
  "additionalProperties": false
}"#;

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// How many pipelines.
    pub pipelines: usize,
    /// How many steps each has.
    pub steps: usize,
    /// How many modules there are; the steps of a pipeline are theirs in turn.
    pub modules: usize,
}

impl Size {
    /// How many steps there are in all.
    pub fn all(&self) -> usize {
        self.pipelines * self.steps
    }

    /// Names of the modules.
    pub fn modules(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.modules).map(module)
    }

    /// Which module runs a step.
    pub fn module_of(&self, step: usize) -> String {
        module(step % self.modules)
    }

    /// Text of a pipeline whose step `marked` is configured with `mark`.
    pub fn text(&self, pipeline: usize, marked: usize, mark: u64) -> String {
        let mut text = format!("pipeline: {}\ndefaults: {{partitions: 1}}\nsteps:\n", name(pipeline));
        for n in 0..self.steps {
            let last = n + 1 == self.steps;
            let kind = if last { "SINK" } else { "PIPELINE" };
            let to = if last { String::new() } else { format!(", outputs: [{{to: {}}}]", step(n + 1)) };
            let mark = if n == marked { mark } else { 0 };
            let _ = writeln!(
                text,
                "  - {{name: {}, type: {kind}, module: {}, config: {{folder: /data/results/{n}, languages: [en, de, fr], size: {}, mark: {mark}}}{to}}}",
                step(n),
                self.module_of(n),
                1000 + n,
            );
        }
        text
    }
}

/// Name of a pipeline.
pub fn name(pipeline: usize) -> String {
    format!("flow-{pipeline:03}")
}

/// Name of a step.
pub fn step(step: usize) -> String {
    format!("step-{step:02}")
}

fn module(number: usize) -> String {
    format!("module-{number:02}")
}
