using Microsoft.Data.Sqlite;

namespace Platform;

/// <summary>
/// One SQLite file, one writer, fully durable commits (decision D6): a committed transaction survives a power cut. Thread-safe: calls are
/// serialised. A file that is damaged is an error, never replaced by an empty one.
/// </summary>
public sealed class SqliteFile : IDisposable
{
    /// <summary>SQLITE_IOERR and SQLITE_FULL.</summary>
    private const int ErrorIo = 10, ErrorFull = 13;

    private readonly SqliteConnection connection;
    private readonly Lock gate = new();

    private SqliteFile(SqliteConnection connection) => this.connection = connection;

    /// <summary>
    /// Opens the file, or creates it for its owner alone, and runs <paramref name="schema"/> (CREATE … IF NOT EXISTS statements).
    /// </summary>
    /// <exception cref="IOException">The file is damaged, locked by another process, or cannot be created; the message says what to do.</exception>
    public static SqliteFile Open(string path, string schema)
    {
        if (!File.Exists(path))
            Create(path, schema);
        SqliteConnection connection = new(new SqliteConnectionStringBuilder { DataSource = path, Pooling = false, DefaultTimeout = 1 }.ToString());
        try
        {
            connection.Open();
            SqliteFile file = new(connection);
            // EXCLUSIVE keeps a second daemon off the same state folder.
            file.Execute("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=1000;");
            // A file cut inside its first page is a new, empty database to SQLite; one that Create made has its tables.
            if (file.Query("SELECT count(*) FROM sqlite_master", static row => row.GetInt64(0))[0] == 0
                || file.Query("PRAGMA quick_check(1)", static row => row.GetString(0))[0] != "ok")
                throw Damaged(path);
            file.Execute(schema);
            return file;
        }
        catch (SqliteException e)
        {
            connection.Dispose();
            throw new IOException($"{path} cannot be used ({e.Message}); it was left as it is. Is another daemon running on this folder?", e);
        }
        catch
        {
            connection.Dispose();
            throw;
        }
    }

    /// <summary>Made under another name: a file that is there under its own has its tables, whenever the power went.</summary>
    private static void Create(string path, string schema)
    {
        if (File.Exists(path + "-wal"))
            throw new IOException($"{path} is gone but {path}-wal is there; nothing was changed. Restore both from a copy, or move the rest away to start empty.");
        string made = path + ".new";
        try
        {
            File.Delete(made);
            using (FileStream empty = new(made, new FileStreamOptions
            {
                Mode = FileMode.CreateNew,
                Access = FileAccess.Write,
                UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
            }))
            {
                empty.Flush(flushToDisk: true);
            }

            using (SqliteConnection connection = new(new SqliteConnectionStringBuilder { DataSource = made, Pooling = false }.ToString()))
            {
                connection.Open();
                using SqliteFile file = new(connection);
                file.Execute("PRAGMA synchronous=FULL;" + schema);
            }

            File.Move(made, path, overwrite: false);
            Posix.SyncDirectory(Path.GetDirectoryName(Path.GetFullPath(path))!);
        }
        catch (Exception e) when (e is SqliteException or UnauthorizedAccessException)
        {
            throw new IOException($"{path} cannot be made ({e.Message})", e);
        }
    }

    private static IOException Damaged(string path) =>
        new($"{path} is damaged; it was left as it is. Restore it from a copy, or move it away to start empty.");

    public int Execute(string sql, params (string Name, object? Value)[] parameters)
    {
        lock (gate)
        {
            using SqliteCommand command = Prepare(sql, parameters);
            return command.ExecuteNonQuery();
        }
    }

    public List<T> Query<T>(string sql, Func<SqliteDataReader, T> read, params (string Name, object? Value)[] parameters)
    {
        lock (gate)
        {
            using SqliteCommand command = Prepare(sql, parameters);
            using SqliteDataReader reader = command.ExecuteReader();
            List<T> rows = [];
            while (reader.Read())
                rows.Add(read(reader));
            return rows;
        }
    }

    /// <summary>Runs several statements as one durable step: all of it is there after a crash, or none.</summary>
    /// <exception cref="IOException">It could not be written (the disk is full, or answers with errors); nothing of it is there.</exception>
    public void Transaction(Action body)
    {
        lock (gate)
        {
            try
            {
                Execute("BEGIN IMMEDIATE");
                try
                {
                    body();
                    Execute("COMMIT");
                }
                catch
                {
                    TryRollBack();
                    throw;
                }
            }
            catch (SqliteException e) when (e.SqliteErrorCode is ErrorIo or ErrorFull)
            {
                throw new IOException($"{connection.DataSource} cannot be written: {e.Message}", e);
            }
        }
    }

    public void Dispose() => connection.Dispose();

    /// <summary>After some errors the engine has rolled back by itself, and there is nothing to roll back.</summary>
    private void TryRollBack()
    {
        try
        {
            Execute("ROLLBACK");
        }
        catch (SqliteException)
        {
            // The first failure is the one to be told.
        }
    }

    private SqliteCommand Prepare(string sql, (string Name, object? Value)[] parameters)
    {
        SqliteCommand command = connection.CreateCommand();
#pragma warning disable CA2100 // The text is ours; values go in as parameters.
        command.CommandText = sql;
#pragma warning restore CA2100
        foreach ((string name, object? value) in parameters)
            command.Parameters.AddWithValue(name, value ?? DBNull.Value);
        return command;
    }
}
