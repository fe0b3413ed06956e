"""What the policy does, as Prometheus metrics on SGLang's own ``/metrics`` page."""
