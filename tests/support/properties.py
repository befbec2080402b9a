"""Settings for property tests on machines that other work slows down: few examples, no deadline."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def cheap(examples: int = 60, *, steps: int = 40) -> settings:
    """A decorator for `@given` tests, or the settings of a state machine of at most `steps` steps."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
