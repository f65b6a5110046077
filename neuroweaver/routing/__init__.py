"""Which deployment answers a request: rules on values, without a clock and without anything that waits."""
