//! The modules that are built into the command.

use pipedoc_model::registry::Modules;
use pipedoc_sdk::factory::Factory;

/// One factory for each built-in module.
pub fn factories() -> Vec<Factory> {
    vec![
        Factory::connector::<pipedoc_filesystem_connector::FilesystemConnector>(),
        Factory::module::<pipedoc_parser::Parser>(),
        Factory::module::<pipedoc_chunker::Chunker>(),
        Factory::module::<pipedoc_splitter::Splitter>(),
        Factory::module::<pipedoc_object_sink::ObjectSink>(),
        Factory::module::<pipedoc_echo::Echo>(),
    ]
}

/// What the built-in modules say of themselves.
pub fn known() -> Modules {
    factories().iter().map(|factory| (factory.info().module.clone(), factory.info().clone())).collect()
}
