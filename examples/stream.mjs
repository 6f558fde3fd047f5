// Print an answer as it arrives, with fetch. Run `make run` first, then: node stream.mjs
// A browser page runs the same code; a page of another origin needs CORS_ALLOWED_ORIGINS.
const url = (process.env.GROQCHAT_URL ?? 'http://localhost:5000') + '/api/groq-chat'

const response = await fetch(`${url}/chat`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ message: 'What is JavaScript?', stream: true }),
})
if (!response.ok) {
    const { error } = await response.json()
    throw new Error(`${response.status} ${error.code}: ${error.message}`)
}

let buffer = ''
for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    buffer += text
    const events = buffer.split('\n\n')
    buffer = events.pop()
    for (const event of events) {
        const name = event.match(/^event: (.*)$/m)?.[1]
        if (!name) continue // a ping
        // `.` and `$` end at U+2028 and U+2029 too, which the text of an answer can contain.
        const data = JSON.parse(event.match(/^data: ([^\n]*)/m)[1])
        if (name === 'delta') process.stdout.write(data.text)
        if (name === 'done') console.log(`\n[${data.finish_reason}]`)
        if (name === 'error') throw new Error(data.error.message)
    }
}
