#!/bin/sh
# A conversation with curl: two messages in one session, its history, and its deletion.
set -eu
url="${GROQCHAT_URL:-http://localhost:5000}/api/groq-chat"
session="example-curl-$$"

chat() {
  curl --silent --show-error --fail-with-body "$url/chat" \
    --header 'Content-Type: application/json' \
    --data "{\"message\": \"$1\", \"session_id\": \"$session\"}"
  echo
}

chat "What is Python?"
chat "And asyncio?"
curl --silent --show-error --fail-with-body "$url/history/$session"
echo
curl --silent --show-error --fail-with-body --request DELETE "$url/history/$session"
echo
