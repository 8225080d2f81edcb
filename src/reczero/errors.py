"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake or circumstance that the user can mend.

    The message says what is wrong, where, and what to do; the command line prints it without a traceback and exits
    with code 2. Anything else that escapes is a defect of ours and keeps its traceback.
    """
