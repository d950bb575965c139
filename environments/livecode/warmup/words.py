"""Warm-up templates that read words."""

from __future__ import annotations

from environments.livecode.warmup import inputs as make
from environments.livecode.warmup.template import Template, grid, texts

S = "s = input()\n"
ENDINGS = ("ing", "er", "land", "ful", "less", "box", "man", "way", "top", "ship", "ist", "ness")
STARTS = ("un", "re", "pre", "sub", "over", "mini", "super", "out", "non", "anti", "mega", "up")
GREETINGS = ("Hello", "Hi", "Welcome", "Goodbye", "Thanks", "Dear", "Greetings", "Sorry", "Congrats", "Howdy")
LETTERS = "aeiorstnl"
MARKS = ("-", "+", "/", "_", ":", "=", "&", "~", "|", ";", ".")

WORDS = (
    Template(
        "echo",
        1,
        "$text",
        "print(input())",
        make.word(),
        texts("Read a word and print it.", "Read a word and print the same word."),
    ),
    Template(
        "reverse_word",
        1,
        "$text",
        S + "print(s[::-1])",
        make.word(),
        texts("Read a word s and print s[::-1].", "Read a word and print its letters in reverse order."),
    ),
    Template(
        "upper_case",
        1,
        "$text",
        S + "print(s.upper())",
        make.word(),
        texts("Read a word s and print s.upper().", "Read a word and print it in capital letters."),
    ),
    Template(
        "word_length",
        1,
        "$text",
        S + "print(len(s))",
        make.made_up_word(),
        texts("Read a word s and print len(s).", "Read a word and print how many letters it has."),
    ),
    Template(
        "first_letter",
        1,
        "$text",
        S + "print(s[0])",
        make.word(),
        texts("Read a word s and print s[0].", "Read a word and print the letter it begins with."),
    ),
    Template(
        "add_ending",
        1,
        'Read a word s and print s + "$end".',
        S + 'print(s + "$end")',
        make.word(),
        grid(end=ENDINGS),
    ),
    Template(
        "add_start",
        1,
        'Read a word s and print "$start" + s.',
        S + 'print("$start" + s)',
        make.word(),
        grid(start=STARTS),
    ),
    Template(
        "greet",
        1,
        "Read a name and print $hello, then a space and the name.",
        S + 'print("$hello", s)',
        make.word(),
        grid(hello=GREETINGS),
    ),
    Template(
        "repeat_word",
        1,
        "Read a word s and print s * $k.",
        S + "print(s * $k)",
        make.word(),
        grid(k=range(3, 14)),
    ),
    Template(
        "wrap_word",
        1,
        'Read a word s and print "$mark" + s + "$mark".',
        S + 'print("$mark" + s + "$mark")',
        make.word(),
        grid(mark=MARKS),
    ),
    Template(
        "letter_at_k",
        1,
        "Read a word s and print s[$k].",
        S + "print(s[$k])",
        make.word(),
        grid(k=range(1, 5)),
    ),
    Template(
        "drop_k_letters",
        1,
        "Read a word s and print s[$k:].",
        S + "print(s[$k:])",
        make.word(),
        grid(k=range(1, 5)),
    ),
    Template(
        "count_letter",
        2,
        "Read a word and print how many times the letter $c occurs in it.",
        S + 'print(s.count("$c"))',
        make.word_with("c"),
        grid(c=LETTERS),
    ),
    Template(
        "remove_letter",
        2,
        "Read a word and print it without the letter $c.",
        S + 'print(s.replace("$c", ""))',
        make.word_with("c"),
        grid(c=LETTERS),
    ),
    Template(
        "join_words",
        3,
        "Read one line of words and print them joined by $mark instead of spaces.",
        'print("$mark".join(input().split()))',
        make.words(),
        grid(mark=MARKS),
    ),
    Template(
        "case_of_word",
        3,
        "Read a word s. If len(s) > $k print s in upper case, otherwise print s.",
        S + "print(s.upper() if len(s) > $k else s)",
        make.made_up_word(),
        grid(k=range(4, 9)),
    ),
)
