#!/usr/bin/env bash
# An agent without LiveKit, shell. Reads "user: …" and "agent: …" lines, ends when all of them are durable.
#   CHAT_HISTORYD_SOCKET=/run/chat-historyd/events.sock plain_socket.sh 68:25:dd:ba:39:78 my-session < conversation.txt
set -euo pipefail
mac=$1 session=$2 socket=${CHAT_HISTORYD_SOCKET:-/run/chat-historyd/events.sock}

quote() { # a JSON string: backslash, quote and tab escaped, other control characters dropped
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$(tr -d '\000-\037' <<<"$text")"
}

if command -v socat >/dev/null; then talk=(socat - "UNIX-CONNECT:$socket"); else talk=(nc -U "$socket"); fi
coproc daemon { "${talk[@]}"; }
exec {from}<&"${daemon[0]}" {to}>&"${daemon[1]}"

printf '{"type":"session_start","v":1,"mac_address":%s,"session_id":%s}\n' "$(quote "$mac")" "$(quote "$session")" >&"$to"
while IFS= read -r said || [[ $said ]]; do
  printf '{"type":"message","chat_type":%s,"content":%s,"timestamp":%s}\n' \
    "$(quote "${said%%: *}")" "$(quote "${said#*: }")" "$(date +%s.%3N)" >&"$to"
done
printf '{"type":"session_end","reason":"done"}\n{"type":"flush","id":"all","level":"durable"}\n' >&"$to"

while IFS= read -r -t 10 answer <&"$from"; do
  case $answer in
    *'"type":"error"'*) echo "refused: $answer" >&2 && exit 1 ;;
    *'"type":"flushed"'*'"ok":true'*) exit 0 ;; # everything is on the disk
    *'"type":"flushed"'*) echo "not durable: $answer" >&2 && exit 1 ;;
  esac
done
echo 'the daemon went away' >&2
exit 1
