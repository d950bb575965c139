"""The limits of one test where a request names none: the recipe's. Everything else takes them from here."""

TIME_LIMIT_S = 15.0
MEMORY_LIMIT_MB = 4096
