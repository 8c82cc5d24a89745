//! What expressions see and what is refused.
use super::*;
