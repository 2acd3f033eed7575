//! System calls behind safe faces: one call a function, all `unsafe` of the crate, no policy.

#![allow(unsafe_code)]

pub(crate) mod aligned;
pub(crate) mod beside;
pub(crate) mod block;
pub(crate) mod direct;
pub(crate) mod durable;
pub(crate) mod landlock;
pub(crate) mod lock_file;
pub(crate) mod locks;
pub(crate) mod program;
pub(crate) mod read;
pub(crate) mod small_file;
pub(crate) mod sparse;
pub(crate) mod store;
pub(crate) mod threads;
