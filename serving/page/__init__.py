"""The listening page: drop a song, hear its stems. HTML, CSS and ES modules without a build step."""
