"""What running a model here would be like, before anything is fetched or loaded: fit, speed, time, what is here.

Values and words that the command line and the desk both show; nothing here shows or asks.
"""
