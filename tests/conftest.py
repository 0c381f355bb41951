from hypothesis import settings

# The same cases at each run, few of them; --hypothesis-profile many draws others, and more.
settings.register_profile("few", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile("many", max_examples=1000, deadline=None, database=None)
settings.load_profile("few")
