//! The proto3 JSON form of documents.
