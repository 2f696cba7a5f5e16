"""What can be wrong with a corpus, an index or the packages that search needs."""


class SearchError(ValueError):
    """The root of the faults that whoever starts the search can mend. The text says how. A ValueError, as a task
    source may raise it."""


class CorpusError(SearchError):
    """A corpus that cannot be read. The text names file, line and field."""


class IndexFolderError(SearchError):
    """An index that is not there, is not whole, or cannot be written."""


class MissingPackageError(SearchError):
    """An extra that is not installed. The text names what to install."""
