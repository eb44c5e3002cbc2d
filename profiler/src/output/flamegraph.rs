//! A flame graph as an interactive SVG, callers above callees. Width is samples; colour tells whose
//! code it is: of Python warm for the program's own, green for installed packages, blue for the
//! standard library; violet for native code, by its library; brown for the kernel; grey for processes,
//! threads and markers.

use std::io::Write;

use anyhow::Context;
use inferno::flamegraph::color::{BackgroundColor, Color, PaletteMap};
use inferno::flamegraph::{Direction, Options, TextTruncateDirection, from_lines};

use super::label_tree::LabelTree;
use crate::profile::{Function, Module, Profile, escape, plural};

/// A frame below this share of all samples (a tenth of a pixel) is not drawn.
const NARROWEST: f64 = 0.0001;

/// Most frames drawn: beyond, browsers become slow.
const MAX_FRAMES: usize = 40_000;

/// Most bytes of collapsed stacks, all of which inferno needs at once.
const MAX_TEXT: usize = 8 << 20;

/// Most characters of the title; more do not fit into the picture.
const MAX_TITLE: usize = 120;

/// Where the samples go that have no frame wide enough, not even a root.
const NARROW: &str = "[too narrow to be drawn]";

const MARKER: Color = rgb(170, 162, 176);

/// Writes the profile as an SVG; an empty profile is a picture that says so.
pub fn write(profile: &Profile, out: &mut dyn Write) -> anyhow::Result<()> {
    if profile.is_empty() {
        return write_empty(profile, out).context("writing the flame graph failed");
    }
    let tree = LabelTree::new(profile);
    let (narrowest, raised) = narrowest(&tree);
    let mut lines = Vec::new();
    tree.lines(narrowest, |stack, samples| {
        let stack = if stack.is_empty() { NARROW } else { stack };
        lines.push(format!("{stack} {samples}"));
        Ok::<(), std::convert::Infallible>(())
    })?;

    let mut palette = palette(profile);
    let mut options = Options::default();
    options.title = title(profile);
    options.subtitle = Some(subtitle(profile, raised.then_some(narrowest)));
    options.count_name = "samples".to_owned();
    options.bgcolors = Some(BackgroundColor::Flat(rgb(250, 250, 250)));
    options.direction = Direction::Inverted;
    options.palette_map = Some(&mut palette);
    // Of `name (file, module)` the name is kept.
    options.text_truncate_direction = TextTruncateDirection::Right;
    options.min_width = 0.0;
    from_lines(&mut options, lines.iter().map(String::as_str), out)
        .context("writing the flame graph failed")
}

/// Fewest samples of a frame that is drawn, and whether that is more than [`NARROWEST`] asks for
/// because the picture would be too large.
fn narrowest(tree: &LabelTree) -> (u64, bool) {
    let smallest = ((tree.samples() as f64 * NARROWEST).ceil() as u64).max(1);
    let mut narrowest = smallest;
    while narrowest < tree.samples() {
        let mut text = 0;
        let fits = tree.frames(narrowest) <= MAX_FRAMES
            && tree
                .lines(narrowest, |stack, _| {
                    text += stack.len();
                    if text <= MAX_TEXT { Ok(()) } else { Err(()) }
                })
                .is_ok();
        if fits {
            break;
        }
        narrowest = narrowest.saturating_mul(2);
    }
    (narrowest, narrowest > smallest)
}

fn title(profile: &Profile) -> String {
    let title = escape(&profile.meta().command);
    if title.chars().count() <= MAX_TITLE {
        return title;
    }
    title.chars().take(MAX_TITLE - 1).chain(['…']).collect()
}

fn subtitle(profile: &Profile, narrowest: Option<u64>) -> String {
    let processes = profile.processes_with_samples() as u64;
    let mut subtitle = format!(
        "{} at {} Hz in {:.1} s, {}",
        plural(profile.total().samples, "sample", "samples"),
        profile.meta().rate,
        profile.meta().duration.as_secs_f64(),
        plural(processes, "process", "processes"),
    );
    if let Some(narrowest) = narrowest {
        subtitle.push_str(&format!("; frames below {narrowest} samples are not drawn"));
    }
    subtitle
}

fn palette(profile: &Profile) -> PaletteMap {
    let mut palette = PaletteMap::default();
    // inferno's own frame around everything has no name.
    palette.insert("", rgb(225, 225, 225));
    palette.insert(NARROW, MARKER);
    for thread in profile.threads_with_samples() {
        palette.insert(profile.thread_label(thread), rgb(205, 208, 214));
        let process = profile.thread(thread).process;
        palette.insert(profile.process_label(process), rgb(188, 194, 204));
    }
    for frame in profile.used_frames() {
        let function = profile.function_of(profile.frame_of(frame).function);
        let label = profile.frame_label(frame);
        if palette.get(&label).is_none() {
            let module = function.module.map(|module| profile.module_of(module));
            let colour = colour(function, module, &label);
            palette.insert(label, colour);
        }
    }
    palette
}

/// The colour of a frame: the hue by whose code it is and its file or library, the shade by its label,
/// so that two lines of a function side by side can be told apart.
fn colour(function: &Function, module: Option<&Module>, label: &str) -> Color {
    let by_file = hash(module.map_or(&function.file, |module| &module.path));
    let shade = (hash(label) % 24) as u8;
    let spread = |range: u64| (by_file % range) as u8;
    if function.is_marker() {
        MARKER
    } else if let Some(module) = module {
        match module.kernel {
            true => rgb(176 + shade, 150 + shade, 110 + spread(30)),
            false => rgb(168 + spread(70), 128 + shade, 214 + shade),
        }
    } else if is_package(&function.file) {
        rgb(120 + spread(60), 200 + shade, 130 + shade)
    } else if is_standard_library(&function.file) {
        rgb(130 + shade, 180 + spread(35), 222 + shade)
    } else {
        rgb(230 + shade, 120 + spread(90), 75 + shade)
    }
}

fn is_package(file: &str) -> bool {
    file.split(['/', '\\']).any(|part| part == "site-packages" || part == "dist-packages")
}

fn is_standard_library(file: &str) -> bool {
    let version = |part: &str| {
        part.strip_prefix("python")
            .is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    };
    // The last part is the file itself: a script may be called python3.py.
    let folders = file.rsplit_once('/').map_or("", |(folders, _)| folders);
    file.starts_with("<frozen ") || folders.split("/lib").skip(1).any(|after| {
        // `/lib/python3.12/…`, `/lib64/python3.12/…`
        after.trim_start_matches("64").strip_prefix('/').is_some_and(|rest| {
            rest.split('/').next().is_some_and(version)
        })
    })
}

/// FNV-1a: the same colours on every machine and in every release.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

const fn rgb(r: u8, g: u8, b: u8) -> Color {
    Color { r, g, b }
}

fn write_empty(profile: &Profile, out: &mut dyn Write) -> std::io::Result<()> {
    let text = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(out, r#"<?xml version="1.0" encoding="UTF-8"?>"#)?;
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" version="1.1" width="1200" height="120" viewBox="0 0 1200 120" font-family="monospace" text-anchor="middle">"#
    )?;
    writeln!(out, r##"<rect width="1200" height="120" fill="#fafafa"/>"##)?;
    writeln!(out, r#"<text x="600" y="40" font-size="17">{}</text>"#, text(&title(profile)))?;
    writeln!(
        out,
        r#"<text x="600" y="80" font-size="14">There were no samples: no Python code ran on a processor. ({})</text>"#,
        text(&subtitle(profile, None))
    )?;
    writeln!(out, "</svg>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Meta, Process, Shape};
    use std::time::{Duration, SystemTime};

    /// What is drawn of `stacks` stacks of 300 functions that no other stack has, over one caller
    /// if `shared`.
    fn drawn(stacks: usize, shared: bool) -> String {
        let meta = Meta {
            started: SystemTime::UNIX_EPOCH,
            rate: 99,
            command: "pyebpf <record>".to_owned(),
            duration: Duration::from_secs(1),
        };
        let mut profile = Profile::new(meta, Shape::default(), false);
        let process = profile.add_process(Process::default());
        let thread = profile.add_thread(process, 1, String::new());
        let root = profile.marker("[root]");
        for stack in 0..stacks {
            let own = (0..300).map(|frame| profile.marker(&format!("[{stack}-{frame}]")));
            let own: Vec<_> = own.collect();
            let stack = profile.stack(shared.then_some(root).into_iter().chain(own));
            profile.record(0, thread, stack, 1);
        }
        let mut svg = Vec::new();
        write(&profile, &mut svg).unwrap();
        String::from_utf8(svg).unwrap()
    }

    #[test]
    fn a_picture_too_large_leaves_out_the_narrowest_and_says_so() {
        let svg = drawn(10, true);
        assert!(svg.contains(">10 samples at 99 Hz in 1.0 s, 1 process<"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2 + 1 + 10 * 300);
        let svg = drawn(200, true);
        assert!(svg.contains("1 process; frames below 2 samples are not drawn<"));
        assert!(svg.contains("[root] (200 samples, 100.00%)"));
        let svg = drawn(200, false);
        assert!(svg.contains(&format!("{NARROW} (200 samples, 100.00%)")));
    }

    #[test]
    fn code_is_coloured_by_whose_it_is() {
        for (file, package, standard) in [
            ("/srv/app/main.py", false, false),
            ("/home/python3/app.py", false, false),
            ("/usr/lib/python3.py", false, false),
            ("/usr/lib/python3.11/json/decoder.py", false, true),
            ("/usr/lib64/python3.6/re.py", false, true),
            ("<frozen importlib._bootstrap>", false, true),
            ("/usr/lib/python3/dist-packages/yaml/reader.py", true, true),
            ("/venv/lib/python3.12/site-packages/numpy/core.py", true, true),
        ] {
            assert_eq!(is_package(file), package, "{file}");
            assert_eq!(is_standard_library(file), standard, "{file}");
        }
    }
}
