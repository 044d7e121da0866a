//! Observing and controlling a process: logs for people or machines, Prometheus metrics, health, signals. Metrics are
//! counted where things happen, with the `metrics` facade. Without [`http`] they are not collected, and cost next to
//! nothing.

pub mod http;
pub mod logs;
pub mod signals;
pub mod start;
