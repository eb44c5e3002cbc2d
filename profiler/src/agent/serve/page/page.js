// The page of the agent: asks `/processes` every two seconds, shows them as a table, and draws what
// `/profile` gives for the one that is clicked. Text of processes is only ever set as text.
'use strict'

const EVERY = 2000
const ROWS_MAX = 1000

const at = id => document.getElementById(id)
const token = {
  get: () => sessionStorage.getItem('token'),
  set: value => sessionStorage.setItem('token', value),
}

/** Asks the agent; throws what it answers when that is no success. */
async function ask(path, signal) {
  const shown = token.get()
  const headers = shown ? { Authorization: `Bearer ${shown}` } : {}
  const response = await fetch(path, { headers, signal, cache: 'no-store' })
  if (response.ok) return response
  if (response.status === 401) at('ask-token').hidden = false
  throw new Error((await response.text()).trim() || `${path}: ${response.status}`)
}

at('ask-token').addEventListener('submit', event => {
  event.preventDefault()
  token.set(at('token').value.trim())
  at('token').value = ''
  at('ask-token').hidden = true
  poll()
})

// ---- the table ----

const COLUMNS = ['pid', 'command', 'python', 'namespace', 'pod', 'container', 'busy', 'samples', 'whole']
const DESCENDING_FIRST = ['busy', 'samples']
const rows = new Map()
let processes = []
let earlier = null
let sort = { key: 'busy', descending: true }
let timer

async function poll() {
  clearTimeout(timer)
  try {
    if (!document.hidden) take(await (await ask('/processes')).json())
    at('state').classList.remove('lost')
  } catch (error) {
    at('state').textContent = `the agent does not answer: ${error.message}`
    at('state').classList.add('lost')
  }
  timer = setTimeout(poll, EVERY)
}

/** From the agent's answer to rows; how busy each is comes from the difference to the one before. */
function take(answer) {
  const samples = new Map(answer.processes.map(process => [process.pid, process.samples]))
  if (earlier && answer.up_seconds < earlier.up) earlier = null
  const seconds = earlier ? answer.up_seconds - earlier.up : 0
  const known = new Map(processes.map(process => [process.pid, process]))
  processes = answer.processes.map(process => {
    const { namespace = '', pod = '', container = '' } = process.labels
    const before = earlier?.samples.get(process.pid)
    const more = process.samples - before
    let busy = known.get(process.pid)?.busy ?? null
    if (seconds > 0 && more >= 0) busy = more / seconds / answer.rate
    const whole = process.samples ? process.complete / process.samples : null
    return { ...process, namespace, pod, container, busy, whole }
  })
  // A status that is no newer tells no difference.
  if (!earlier || seconds > 0) earlier = { up: answer.up_seconds, samples }
  const lowered = answer.rate < answer.rate_asked ? ` (lowered from ${answer.rate_asked})` : ''
  at('state').textContent =
    `samples at ${answer.rate} Hz${lowered} since ${duration(answer.up_seconds)}, ` +
    `${processes.length} Python ${processes.length === 1 ? 'process' : 'processes'}`
  show(true)
}

function duration(seconds) {
  const units = [[86400, 'd'], [3600, 'h'], [60, 'min']]
  const unit = units.find(([size]) => seconds >= size)
  return unit ? `${Math.floor(seconds / unit[0])} ${unit[1]}` : `${Math.round(seconds)} s`
}

/** With `keepOrder` a row that a pointer is about to click stays where it is. */
function show(keepOrder = false) {
  const words = at('search').value.toLowerCase().split(/\s+/).filter(Boolean)
  const text = process =>
    [process.pid, process.command, process.python, ...Object.values(process.labels)].join(' ').toLowerCase()
  const found = processes.filter(process => {
    const searched = words.length ? text(process) : ''
    return words.every(word => searched.includes(word))
  })
  found.sort((a, b) => compare(a, b) || a.pid - b.pid)
  const list = at('processes')
  if (keepOrder && list.matches(':hover')) {
    const places = new Map([...list.children].map((tr, index) => [tr.process.pid, index]))
    const place = process => places.get(process.pid) ?? Infinity
    found.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b)))
  }
  const shown = found.slice(0, ROWS_MAX)
  const wanted = shown.map(process => row(process))
  // Rows keep their place in the document where they can, and with it the focus.
  if (wanted.length !== list.children.length || wanted.some((tr, index) => tr !== list.children[index])) {
    const focused = document.activeElement
    list.replaceChildren(...wanted)
    if (focused?.isConnected) focused.focus({ preventScroll: true })
  }
  const pids = new Set(processes.map(process => process.pid))
  for (const pid of rows.keys()) if (!pids.has(pid)) rows.delete(pid)
  at('shown').textContent =
    shown.length === processes.length ? '' : `${shown.length} of ${processes.length} are shown`
  at('nobody').hidden = processes.length > 0
  for (const button of document.querySelectorAll('th button')) {
    const heading = button.parentElement
    if (button.dataset.key !== sort.key) heading.removeAttribute('aria-sort')
    else heading.setAttribute('aria-sort', sort.descending ? 'descending' : 'ascending')
  }
}

function compare(a, b) {
  const [left, right] = [a[sort.key], b[sort.key]]
  // What is not known comes last, whatever the order.
  const unknown = value => value === null || value === ''
  if (unknown(left) || unknown(right)) return unknown(left) - unknown(right)
  const order =
    typeof left === 'number' ? left - right : left.localeCompare(right, undefined, { numeric: true })
  return sort.descending ? -order : order
}

/** The row of a process, new or with what has changed. */
function row(process) {
  let tr = rows.get(process.pid)
  if (!tr) {
    tr = document.createElement('tr')
    tr.append(...COLUMNS.map(key => {
      const cell = document.createElement('td')
      if (['pid', 'busy', 'samples', 'whole'].includes(key)) cell.className = 'number'
      return cell
    }))
    tr.addEventListener('click', () => profileOf(tr.process))
    tr.addEventListener('keydown', event => {
      if (event.key === 'Enter' && event.target === tr) profileOf(tr.process)
    })
    rows.set(process.pid, tr)
  }
  tr.process = process
  tr.dataset.pid = process.pid
  tr.tabIndex = process.excluded ? -1 : 0
  tr.classList.toggle('excluded', process.excluded)
  tr.title = process.excluded ? 'settings or an annotation leave it out' : 'click to profile it'
  const percent = value => (value === null ? '–' : `${(Math.floor(value * 1000) / 10).toFixed(1)} %`)
  const cells = {
    ...process,
    busy: process.excluded || process.busy === null ? '–' : process.busy.toFixed(2),
    whole: process.excluded ? 'left out' : percent(process.whole),
  }
  COLUMNS.forEach((key, index) => {
    const text = String(cells[key])
    const cell = tr.children[index]
    if (cell.textContent === text) return
    if ((key === 'pod' || key === 'container') && text) cell.replaceChildren(link(tr, key, text))
    else cell.textContent = text
  })
  return tr
}

/** A button that profiles all of a pod or container. */
function link(tr, key, text) {
  const button = document.createElement('button')
  button.type = 'button'
  button.textContent = text
  button.title = `profile all of this ${key}`
  button.addEventListener('click', event => {
    event.stopPropagation()
    const { namespace, container_id: id } = tr.process.labels
    const name = key === 'pod' ? (namespace ? `${namespace}/${text}` : text) : (id ?? text)
    profile({ query: { [key]: name }, words: `${key} ${text}` })
  })
  return button
}

function profileOf(process) {
  if (process.excluded) return
  profile({ query: { pid: process.pid }, words: `${process.pid}: ${process.command}`, pid: process.pid })
}

// ---- the profile ----

let target = null
let asked = null

const pathOf = format =>
  '/profile?' + new URLSearchParams({ ...target.query, seconds: at('seconds').value, format })

/** Takes a profile of a target and draws it, again and again while it is live. */
async function profile(next) {
  asked?.abort()
  target = next
  at('profile').hidden = false
  at('whose').textContent = at('whose').title = target.words
  for (const tr of rows.values()) tr.classList.toggle('asked', tr.process.pid === target.pid)
  linkFormats()
  at('profile').scrollIntoView({ block: 'nearest' })
  do {
    const response = await taken('flamegraph')
    if (!response) return
    draw(await response.text())
  } while (at('live').checked && target === next)
}

/** What `/profile` gives for the target, with a countdown; nothing when it was stopped or failed. */
async function taken(format) {
  asked?.abort()
  const mine = (asked = new AbortController())
  const seconds = Number(at('seconds').value)
  const began = performance.now()
  const count = () => {
    const passed = (performance.now() - began) / 1000
    at('done').value = Math.min(1, passed / seconds)
    at('left').textContent = passed < seconds ? `${Math.ceil(seconds - passed)} s` : 'naming…'
  }
  count()
  const counting = setInterval(count, 200)
  at('progress').hidden = at('stop').hidden = false
  at('again').hidden = true
  at('trouble').hidden = true
  try {
    const response = await ask(pathOf(format), mine.signal)
    // All of it, so that stopping ends this, too.
    const content = await response.blob()
    return mine.signal.aborted ? null : new Response(content, { headers: response.headers })
  } catch (error) {
    if (!mine.signal.aborted) {
      at('trouble').textContent = error.message
      at('trouble').hidden = false
    }
    return null
  } finally {
    clearInterval(counting)
    if (asked === mine) {
      at('progress').hidden = at('stop').hidden = true
      at('again').hidden = false
    }
  }
}

/** Draws a picture in a frame of its own, which has no rights. */
function draw(svg) {
  const frame = document.createElement('iframe')
  frame.setAttribute('sandbox', 'allow-scripts')
  frame.title = `flame graph of ${target.words}`
  frame.src = '/frame'
  const hear = event => {
    if (event.source !== frame.contentWindow) return
    if (event.data.ready) return frame.contentWindow.postMessage(svg, '*')
    removeEventListener('message', hear)
    searchPicture()
    frame.style.height = `${Math.ceil(Number(event.data.height)) + 4}px`
  }
  addEventListener('message', hear)
  at('picture').replaceChildren(frame)
}

/** The picture's own search would ask with a dialogue, which its frame may not. */
function searchPicture() {
  const frame = at('picture').querySelector('iframe')
  frame?.contentWindow.postMessage(at('within').value.trim(), '*')
}

function linkFormats() {
  for (const link of document.querySelectorAll('[data-format]')) link.href = pathOf(link.dataset.format)
}

/** Takes a profile in a format and saves it; by hand, for a link can't show a token. */
async function save(format) {
  const response = await taken(format)
  if (!response) return
  const name = /filename="([^"]+)"/.exec(response.headers.get('content-disposition') ?? '')
  const link = document.createElement('a')
  link.href = URL.createObjectURL(await response.blob())
  link.download = name ? name[1] : 'profile'
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

// ---- what is clicked ----

for (const link of document.querySelectorAll('[data-format]')) {
  link.addEventListener('click', event => {
    event.preventDefault()
    save(link.dataset.format)
  })
}
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const { key } = button.dataset
    const descending = sort.key === key ? !sort.descending : DESCENDING_FIRST.includes(key)
    sort = { key, descending }
    show()
  })
}
at('within').addEventListener('input', searchPicture)
at('search').addEventListener('input', () => show())
at('seconds').addEventListener('change', () => target && linkFormats())
at('live').addEventListener('change', () => {
  if (at('live').checked && target && at('stop').hidden) profile(target)
})
at('everything').addEventListener('click', () => profile({ query: {}, words: 'everything' }))
at('again').addEventListener('click', () => profile(target))
at('stop').addEventListener('click', () => asked?.abort())
at('close').addEventListener('click', () => {
  asked?.abort()
  target = null
  at('profile').hidden = true
  at('picture').replaceChildren()
})
document.addEventListener('visibilitychange', () => document.hidden || poll())
poll()
