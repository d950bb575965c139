"""How programs are compiled and run, a folder for each language. Python is the only one.

No language can be plugged in yet: zygote.py (compile, run), template.py and host.py (the warm interpreter), judging.py
(official semantics), protocol.py (a request names no language) and the environment's prompts name Python. Without a
change to the judge another language comes as your own verifier (docs/how-to/verifier.md), with your own prompt
own.
"""
