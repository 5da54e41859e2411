"""What a node tells Prometheus and its probes: /metrics, /healthz, /readyz."""
