"""Keep pytest from importing the script, because tests/fuzz has another module of that name."""

collect_ignore = ["run.py"]
