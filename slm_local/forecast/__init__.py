"""What running a model here would be like, before anything is fetched or loaded: fit, speed, time, what is here.

Values and words that the command line and the desk both show; nothing here shows or asks.
"""

from __future__ import annotations

from slm_local.forecast.offers import STAGES, offer_lines, pace, title_of
from slm_local.forecast.plans import Forecast, forecast, machine_line
from slm_local.forecast.suited import models_here, offers
from slm_local.forecast.thinking import limit_words, thinking_words

__all__ = [
    "STAGES",
    "Forecast",
    "forecast",
    "limit_words",
    "machine_line",
    "models_here",
    "offer_lines",
    "offers",
    "pace",
    "thinking_words",
    "title_of",
]
