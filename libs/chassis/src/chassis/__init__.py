"""How every service starts: settings, HTTP app, tokens, errors, health, telemetry."""
