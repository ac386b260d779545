//! The rules of tasks as data.
//! x
