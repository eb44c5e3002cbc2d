// Uses the agent's page in a headless Chromium as a person does, and prints what was seen as JSON.
//
// Usage: node page.mjs CHROMIUM URL STEPS
//
// STEPS is a JSON list, each of one key: `click` (a CSS selector), `type` ([selector, text]), `until`
// (an expression of the page that becomes true), `drawn` (a text in the picture, whose frame is of no
// origin), `act` (an expression in the picture that becomes true), `see` ([name, expression]), `emulate`
// ({ width, height, dark }), `shot` (a file for a picture of it all). The browser is spoken to through
// its debugging pipe, whose messages end with a zero byte.

import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const [chromium, url, steps] = process.argv.slice(2)
const PATIENCE = 30_000

const profile = mkdtempSync(join(tmpdir(), 'pyebpf-page-'))
const browser = spawn(
  chromium,
  [
    '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--remote-debugging-pipe',
    `--user-data-dir=${profile}`, 'about:blank',
  ],
  { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] },
)
const ended = new Promise((_, reject) => {
  browser.on('error', reject)
  browser.on('exit', code => reject(new Error(`the browser ended with ${code}`)))
})
ended.catch(() => {})

let last = 0
const waiting = new Map()
const contexts = new Map()
const complaints = []
let rest = Buffer.alloc(0)

function send(method, params = {}, sessionId) {
  const id = ++last
  browser.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + '\0')
  const answer = new Promise((resolve, reject) => waiting.set(id, { method, resolve, reject }))
  return Promise.race([answer, ended])
}

browser.stdio[4].on('data', data => {
  rest = Buffer.concat([rest, data])
  for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) {
    take(JSON.parse(rest.subarray(0, end).toString()))
  }
})

function take({ id, method, params, sessionId, result, error }) {
  if (id) {
    const { method, resolve, reject } = waiting.get(id)
    waiting.delete(id)
    return error ? reject(new Error(`${method}: ${error.message}`)) : resolve(result)
  }
  // Frames of no origin are processes, and so sessions, of their own.
  if (method === 'Target.attachedToTarget') watch(params.sessionId).catch(() => {})
  if (method === 'Runtime.executionContextCreated') {
    contexts.set(`${sessionId} ${params.context.id}`, { sessionId, id: params.context.id })
  }
  if (method === 'Runtime.executionContextDestroyed') {
    contexts.delete(`${sessionId} ${params.executionContextId}`)
  }
  if (method === 'Runtime.exceptionThrown') {
    const { text, exception } = params.exceptionDetails
    complaints.push(exception?.description ?? text)
  }
  // What the page's policy has kept from running, among others.
  if (method === 'Log.entryAdded' && params.entry.level === 'error') complaints.push(params.entry.text)
}

async function watch(session) {
  const automatic = { autoAttach: true, waitForDebuggerOnStart: false, flatten: true }
  await send('Runtime.enable', {}, session)
  await send('Log.enable', {}, session)
  await send('Target.setAutoAttach', automatic, session)
}

async function evaluate(expression, session, contextId) {
  const asked = { expression, contextId, returnByValue: true, awaitPromise: true }
  const { result, exceptionDetails } = await send('Runtime.evaluate', asked, session)
  if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description}`)
  return result.value
}

async function until(what, check) {
  const end = Date.now() + PATIENCE
  for (;;) {
    const found = await check()
    if (found) return found
    if (Date.now() > end) {
      throw new Error(`${what} did not come; the browser says ${JSON.stringify(complaints)}`)
    }
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

/** What an expression is in the frame with the picture; nothing where there is none yet. */
async function inPicture(expression) {
  for (const { sessionId, id } of [...contexts.values()]) {
    // A frame that is being replaced has none.
    const value = await evaluate(`document.querySelector('#frames') && (${expression})`, sessionId, id)
      .catch(() => null)
    if (value) return value
  }
  return null
}

const seen = {}

async function run() {
  const { targetId } = await send('Target.createTarget', { url: 'about:blank' })
  const { sessionId } = await send('Target.attachToTarget', { targetId, flatten: true })
  await watch(sessionId)
  await send('Page.enable', {}, sessionId)
  await send('Page.navigate', { url }, sessionId)
  const does = {
    until: expression => until(expression, () => evaluate(expression, sessionId).catch(() => false)),
    drawn: text => {
      const expression = `document.querySelector('svg').textContent.includes(${JSON.stringify(text)})`
      return until(`a picture with ${text}`, () => inPicture(expression))
    },
    act: expression => until(expression, () => inPicture(expression)),
    click: async selector => {
      const element = `document.querySelector(${JSON.stringify(selector)})`
      await until(selector, () => evaluate(`Boolean(${element})`, sessionId).catch(() => false))
      await evaluate(`${element}.scrollIntoView({ block: 'center' })`, sessionId)
      const place = `(({ x, y, width, height }) => [x + Math.min(width / 2, 20), y + height / 2])(${element}.getBoundingClientRect())`
      const [x, y] = await evaluate(place, sessionId)
      for (const type of ['mousePressed', 'mouseReleased']) {
        const button = { type, x, y, button: 'left', clickCount: 1 }
        await send('Input.dispatchMouseEvent', button, sessionId)
      }
    },
    type: async ([selector, text]) => {
      await evaluate(`document.querySelector(${JSON.stringify(selector)}).focus()`, sessionId)
      await send('Input.insertText', { text }, sessionId)
    },
    see: async ([name, expression]) => (seen[name] = await evaluate(expression, sessionId)),
    emulate: async ({ width, height, dark }) => {
      const metrics = { width, height, deviceScaleFactor: 1, mobile: false }
      await send('Emulation.setDeviceMetricsOverride', metrics, sessionId)
      const features = [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }]
      await send('Emulation.setEmulatedMedia', { features }, sessionId)
    },
    shot: async file => {
      await new Promise(resolve => setTimeout(resolve, 500))
      const { data } = await send('Page.captureScreenshot', {}, sessionId)
      writeFileSync(file, Buffer.from(data, 'base64'))
    },
  }
  for (const step of JSON.parse(steps)) {
    const [[what, argument]] = Object.entries(step)
    await does[what](argument)
  }
  seen.complaints = complaints
}

let failed
const tooLong = new Promise((_, reject) => {
  setTimeout(() => reject(new Error('it all took too long')), 4 * PATIENCE).unref()
})
await Promise.race([run(), tooLong]).catch(error => (failed = error))
browser.removeAllListeners('exit')
if (browser.exitCode === null) {
  const gone = new Promise(resolve => browser.on('exit', resolve))
  // Its other processes end with it, but not when it is killed.
  send('Browser.close').catch(() => {})
  const late = setTimeout(() => browser.kill('SIGKILL'), 10_000)
  await gone
  clearTimeout(late)
}
// Some of its processes may still write there for a moment.
for (let tries = 20; tries > 0; tries--) {
  try {
    rmSync(profile, { recursive: true, force: true })
    break
  } catch {
    await new Promise(resolve => setTimeout(resolve, 100))
  }
}
if (failed) {
  console.error(failed)
  process.exit(1)
}
process.stdout.write(JSON.stringify(seen))
