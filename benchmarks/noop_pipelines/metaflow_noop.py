"""Seven stages in Metaflow: start and s2 to s7; Metaflow demands an end, which does nothing."""

from metaflow import FlowSpec, step
from noop import work


class NoopFlow(FlowSpec):
    """A chain; every step's text is an artifact of Metaflow's datastore."""

    @step
    def start(self):
        """Stage 1."""
        self.text = work(1, "")
        self.next(self.s2)

    @step
    def s2(self):
        """Stage 2."""
        self.text = work(2, self.text)
        self.next(self.s3)

    @step
    def s3(self):
        """Stage 3."""
        self.text = work(3, self.text)
        self.next(self.s4)

    @step
    def s4(self):
        """Stage 4."""
        self.text = work(4, self.text)
        self.next(self.s5)

    @step
    def s5(self):
        """Stage 5."""
        self.text = work(5, self.text)
        self.next(self.s6)

    @step
    def s6(self):
        """Stage 6."""
        self.text = work(6, self.text)
        self.next(self.s7)

    @step
    def s7(self):
        """Stage 7."""
        self.text = work(7, self.text)
        self.next(self.end)

    @step
    def end(self):
        """Nothing."""


if __name__ == "__main__":
    NoopFlow()
