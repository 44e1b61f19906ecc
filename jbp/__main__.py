"""`python -m jbp`: the same program as `jbp`."""

from jbp.cli import program

if __name__ == "__main__":
    program()
