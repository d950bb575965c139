"""Warm-up templates that read words."""

from __future__ import annotations

from environments.livecode.problems.warmup import inputs as make
from environments.livecode.problems.warmup.template import ProblemTemplate, grid, texts

S = "s = input()\n"
ENDINGS = ("ing", "er", "land", "ful", "less", "box", "man", "way", "top", "ship", "ist", "ness")
STARTS = ("un", "re", "pre", "sub", "over", "mini", "super", "out", "non", "anti", "mega", "up")
GREETINGS = ("Hello", "Hi", "Welcome", "Goodbye", "Thanks", "Dear", "Greetings", "Sorry", "Congrats", "Howdy")
LETTERS = "aeiorstnl"
MARKS = ("-", "+", "/", "_", ":", "=", "&", "~", "|", ";", ".")

WORDS = (
    ProblemTemplate(
        "echo",
        1,
        "$text",
        "print(input())",
        make.word(),
        texts("Read a word and print it.", "Read a word and print the same word."),
    ),
    ProblemTemplate(
        "reverse_word",
        1,
        "$text",
        S + "print(s[::-1])",
        make.word(),
        texts("Read a word s and print s[::-1].", "Read a word and print its letters in reverse order."),
    ),
    ProblemTemplate(
        "upper_case",
        1,
        "$text",
        S + "print(s.upper())",
        make.word(),
        texts("Read a word s and print s.upper().", "Read a word and print it in capital letters."),
    ),
    ProblemTemplate(
        "word_length",
        1,
        "$text",
        S + "print(len(s))",
        make.made_up_word(),
        texts("Read a word s and print len(s).", "Read a word and print how many letters it has."),
    ),
    ProblemTemplate(
        "first_letter",
        1,
        "$text",
        S + "print(s[0])",
        make.word(),
        texts("Read a word s and print s[0].", "Read a word and print the letter it begins with."),
    ),
    ProblemTemplate(
        "add_ending",
        1,
        'Read a word s and print s + "$end".',
        S + 'print(s + "$end")',
        make.word(),
        grid(end=ENDINGS),
    ),
    ProblemTemplate(
        "add_start",
        1,
        'Read a word s and print "$start" + s.',
        S + 'print("$start" + s)',
        make.word(),
        grid(start=STARTS),
    ),
    ProblemTemplate(
        "greet",
        1,
        "Read a name and print $hello, then a space and the name.",
        S + 'print("$hello", s)',
        make.word(),
        grid(hello=GREETINGS),
    ),
    ProblemTemplate(
        "repeat_word",
        1,
        "Read a word s and print s * $k.",
        S + "print(s * $k)",
        make.word(),
        grid(k=range(3, 14)),
    ),
    ProblemTemplate(
        "wrap_word",
        1,
        'Read a word s and print "$mark" + s + "$mark".',
        S + 'print("$mark" + s + "$mark")',
        make.word(),
        grid(mark=MARKS),
    ),
    ProblemTemplate(
        "letter_at_k",
        1,
        "Read a word s and print s[$k].",
        S + "print(s[$k])",
        make.word(),
        grid(k=range(1, 5)),
    ),
    ProblemTemplate(
        "drop_k_letters",
        1,
        "Read a word s and print s[$k:].",
        S + "print(s[$k:])",
        make.word(),
        grid(k=range(1, 5)),
    ),
    ProblemTemplate(
        "count_letter",
        2,
        "Read a word and print how many times the letter $c occurs in it.",
        S + 'print(s.count("$c"))',
        make.word_with("c"),
        grid(c=LETTERS),
    ),
    ProblemTemplate(
        "remove_letter",
        2,
        "Read a word and print it without the letter $c.",
        S + 'print(s.replace("$c", ""))',
        make.word_with("c"),
        grid(c=LETTERS),
    ),
    ProblemTemplate(
        "join_words",
        3,
        "Read one line of words and print them joined by $mark instead of spaces.",
        'print("$mark".join(input().split()))',
        make.words(),
        grid(mark=MARKS),
    ),
    ProblemTemplate(
        "case_of_word",
        3,
        "Read a word s. If len(s) > $k print s in upper case, otherwise print s.",
        S + "print(s.upper() if len(s) > $k else s)",
        make.made_up_word(),
        grid(k=range(4, 9)),
    ),
)
