def count_even(values):
    return sum(value % 2 == 0 for value in values)
