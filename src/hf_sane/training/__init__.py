"""Training on zoos: SANE pre-training with Accelerate, the behavioural loss, evaluation."""
