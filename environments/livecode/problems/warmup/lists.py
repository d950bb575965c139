"""Warm-up templates that read a line of integers."""

from __future__ import annotations

from environments.livecode.problems.warmup import inputs as make
from environments.livecode.problems.warmup.template import ProblemTemplate, grid, texts

V = "v = list(map(int, input().split()))\n"
AS_LIST = "Read one line of integers as a list v and print "
READ = "Read one line of integers separated by spaces and print "

LISTS = (
    ProblemTemplate(
        "sum_of_list",
        1,
        "$text",
        V + "print(sum(v))",
        make.row(),
        texts(AS_LIST + "sum(v).", READ + "the sum of all of them."),
    ),
    ProblemTemplate(
        "max_of_list",
        1,
        "$text",
        V + "print(max(v))",
        make.row(),
        texts(AS_LIST + "max(v).", READ + "their maximum."),
    ),
    ProblemTemplate(
        "length_of_list",
        1,
        "$text",
        V + "print(len(v))",
        make.row(shortest=1, longest=9),
        texts(AS_LIST + "len(v).", READ + "the number of integers."),
    ),
    ProblemTemplate(
        "last_of_list",
        1,
        "$text",
        V + "print(v[-1])",
        make.row(),
        texts(AS_LIST + "v[-1].", READ + "only the last integer."),
    ),
    ProblemTemplate(
        "sort_list",
        2,
        "$text",
        V + "print(*sorted(v))",
        make.row(),
        texts(READ + "them sorted.", READ + "them sorted from smallest to largest."),
    ),
    ProblemTemplate(
        "item_at_index",
        1,
        AS_LIST + "v[$k].",
        V + "print(v[$k])",
        make.row_at_least("k"),
        grid(k=range(1, 9)),
    ),
    ProblemTemplate(
        "sum_plus_k",
        1,
        AS_LIST + "sum(v) + $k.",
        V + "print(sum(v) + $k)",
        make.row(),
        grid(k=range(2, 41)),
    ),
    ProblemTemplate(
        "sum_of_list_times_k",
        1,
        READ + "their sum multiplied by $k.",
        V + "print(sum(v) * $k)",
        make.row(),
        grid(k=range(2, 16)),
    ),
    ProblemTemplate(
        "max_minus_k",
        2,
        AS_LIST + "max(v) - $k.",
        V + "print(max(v) - $k)",
        make.row(),
        grid(k=range(2, 31)),
    ),
    ProblemTemplate(
        "min_plus_k",
        2,
        AS_LIST + "min(v) + $k.",
        V + "print(min(v) + $k)",
        make.row(0, 40),
        grid(k=range(2, 31)),
    ),
    ProblemTemplate(
        "count_equal_k",
        2,
        READ + "how many of them are equal to $k.",
        V + "print(v.count($k))",
        make.row_around("k", 2),
        grid(k=range(3, 21)),
    ),
    ProblemTemplate(
        "add_k_to_each",
        3,
        READ + "each of them plus $k, on one line.",
        V + "print(*[x + $k for x in v])",
        make.row(),
        grid(k=range(2, 21)),
    ),
    ProblemTemplate(
        "multiply_each_by_k",
        3,
        READ + "each of them multiplied by $k, on one line.",
        V + "print(*[x * $k for x in v])",
        make.row(),
        grid(k=range(2, 13)),
    ),
    ProblemTemplate(
        "keep_greater_than_k",
        3,
        READ + "those that are greater than $k, in the same order, on one line.",
        V + "print(*[x for x in v if x > $k])",
        make.row_around("k"),
        grid(k=range(5, 21)),
    ),
    ProblemTemplate(
        "second_largest_plus_k",
        3,
        READ + "the second largest one plus $k.",
        V + "print(sorted(v)[-2] + $k)",
        make.row(0, 40),
        grid(k=range(2, 21)),
    ),
)
