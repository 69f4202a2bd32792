"""What every test stands on: reproducible hypothesis runs on a busy machine, and few of them by default."""

from hypothesis import HealthCheck, settings

# No deadline per example: two cores are shared by everything, and a slow example is no wrong one.
settings.register_profile(
    "felloe", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("felloe")
