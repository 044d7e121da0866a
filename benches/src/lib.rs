//! Benchmarks of milkrun: stages, and side by side with peers.
