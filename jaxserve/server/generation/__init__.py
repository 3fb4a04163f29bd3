"""What chats and completions share: prompts, choices and their streams."""
