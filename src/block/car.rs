//! CAR
