def common(a, b):
    return [value for value in dict.fromkeys(a) if value in b][::-1]
