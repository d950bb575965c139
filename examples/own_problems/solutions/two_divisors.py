n = int(input())
largest = next(d for d in range(n - 1, 1, -1) if n % d == 0)
print(largest, n // largest)
