"""Where the newest readings go besides the store: Prometheus, OpenTelemetry."""
