"""Property tests draw the same examples every time and have no deadline: a busy machine must not fail a build."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("certrank", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("certrank")
