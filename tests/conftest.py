"""Settings of all tests: machines are shared and noisy, so slowness alone is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy")
