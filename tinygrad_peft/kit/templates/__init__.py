"""One working method per kind, called "example": `new-plugin` copies it under another name."""
