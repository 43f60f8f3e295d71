//! The API's socket: mode 0600, one JSON line in, one out.

use std::{
    fs, io, os::unix::fs::PermissionsExt as _, os::unix::net::UnixStream as StdStream, path::Path,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use super::Question;
use crate::api::{Request, Response};

/// The longest question, in bytes.
const LONGEST: u64 = 1 << 20;

/// Says no where another daemon answers on the socket already.
pub fn refuse_second(path: &Path) -> anyhow::Result<()> {
    match StdStream::connect(path) {
        Ok(_) => anyhow::bail!(
            "{}: another daemon runs with this socket; end it first, or give this one its own node.api",
            path.display()
        ),
        Err(_) => Ok(()),
    }
}

/// Listens; each question goes to `questions`.
pub fn listen(path: &Path, questions: mpsc::Sender<Question>) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    // Nobody may connect before the mode is set.
    // SAFETY: changes the mask of this process only, and back.
    let mask = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    let listener =
        listener.with_context(|| format!("{}: the API cannot listen", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let questions = questions.clone();
            tokio::spawn(async move {
                let _ = converse(stream, questions).await;
            });
        }
    });
    Ok(())
}

async fn converse(stream: UnixStream, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LONGEST))
        .read_line(&mut line)
        .await?;
    let response = match serde_json::from_str::<Request>(&line) {
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            let _ = questions.send(Question { request, answer }).await;
            answered
                .await
                .unwrap_or_else(|_| refusal("the daemon is ending"))
        }
        Err(error) => refusal(&format!("the request cannot be understood: {error}")),
    };
    let mut text = serde_json::to_string(&response)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await
}

fn refusal(message: &str) -> Response {
    Response {
        ok: false,
        message: message.to_owned(),
        data: serde_json::Value::Null,
    }
}
