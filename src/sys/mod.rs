//! System calls behind safe faces: one call a function, all `unsafe` of the crate, no policy.

#![allow(unsafe_code)]

pub(crate) mod aligned;
pub(crate) mod block;
pub(crate) mod landlock;
pub(crate) mod store;
