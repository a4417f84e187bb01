"""Command lines whose errors are one line."""

import argparse
from typing import NoReturn

from utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """Shows its epilog as it is written, and raises a `UserError` for a wrong command."""

    def __init__(self, **settings) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help says more")
