"""Raw web pages, as WARC files or folders of HTML with their pictures, become interleaved documents (Apache Beam)."""
