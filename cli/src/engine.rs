//! `pipedoc engine`: reads pipelines from a folder and tells modules what to do.
