//! How a process is seen and told: logs for people or machines, Prometheus metrics, health, signals. What is counted is counted
//! where it happens, with the `metrics` facade; without [`http`] nobody collects it, and it costs next to nothing.

pub mod http;
pub mod logs;
pub mod signals;
pub mod start;
