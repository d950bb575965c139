"""How programs are compiled and run, a folder for each language.

language.py is the interface, registry.py finds a language by name; docs/how-to/language.md shows how to add one. This
file stays empty: what runs in a sandbox imports its own half of a language and nothing of the judge's.
"""
